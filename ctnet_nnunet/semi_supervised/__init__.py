"""Semi-supervised steps with a teacher and a student: pure torch units that know no trainer and no nnU-Net."""
