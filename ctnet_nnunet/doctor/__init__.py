"""What ``ctnet doctor`` looks at, one file per part of the machine; nothing here changes anything."""
