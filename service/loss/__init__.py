"""The mathematics: options in, rows of losses and gradients out; pure torch and numpy."""
