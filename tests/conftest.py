"""For all tests."""

import torch

# The networks here are small, and the suite runs in two processes: more threads only wait.
torch.set_num_threads(1)
