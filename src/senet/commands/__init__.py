"""The commands of `senet`, a file each; `senet.cli` has their table."""
