"""What a folder holds."""

from pathlib import Path


def listing(folder: Path) -> list[str]:
    """Every file below a folder, but for the byte code of configuration files."""
    return sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts)
