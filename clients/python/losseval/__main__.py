"""``python -m losseval``."""

import sys

from .cli import main

sys.exit(main())
