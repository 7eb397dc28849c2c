"""Plans for CTNet: typed options, nnU-Net's planner with CTNet's memory in its loop, and writing the file."""
