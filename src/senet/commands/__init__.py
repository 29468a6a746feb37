"""The commands of `senet`, a file each; `senet.cli` has their table."""

__all__: list[str] = []
