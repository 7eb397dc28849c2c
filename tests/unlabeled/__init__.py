"""Tests of the unlabelled scans."""
