"""From what imaging teams have on disk to a raw nnU-Net dataset: shared parts of the scripts in dataset_conversion."""
