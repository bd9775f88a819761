"""What tests and builds have to agree on."""

MARK = 54321.0
"""A logit that asks a build for its speciality."""
FIXED_S = 0.005
"""How long the fixed device takes for a batch."""
DEVICE_ROWS = 8
"""How many rows fit the small device, of requests with `SMALL_CLASSES`."""
SMALL_CLASSES = 5
