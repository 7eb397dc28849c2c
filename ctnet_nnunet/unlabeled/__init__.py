"""Unlabelled scans: the folder imagesUn, its preprocessing, and the pool that pretraining draws from."""
