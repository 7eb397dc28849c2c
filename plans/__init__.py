"""The presets of ``ctnet plan``, one JSON file each; installed as the package ``ctnet_nnunet.plans``. Data only."""
