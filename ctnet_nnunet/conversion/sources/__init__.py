"""One file per foreign layout; each lists its cases as :class:`~ctnet_nnunet.conversion.cases.Listing`."""
