"""ctnet_nnunet: annotation-efficient learning on a stock nnU-Net v2."""

__version__ = "0.1.0"
