"""The folder that nnU-Net's ``nnUNet_extTrainer`` points at. It holds one flat module and nothing else.

nnU-Net imports every module below that folder under a bare name and forgets it after the look-up. Classes that live
here would be other classes at each look-up and could not be pickled; so the trainers live in
``ctnet_nnunet.trainers`` and ``ctnet_trainers`` only names them.
"""
