"""``python -m ctnet_nnunet.train``, alone or under torchrun: what nnUNetv2_train does, in processes on any machines."""
