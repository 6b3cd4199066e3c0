from pathlib import Path

import pytest
from tests.checkpoint.official.miniature import Miniature, write_miniature


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    return write_miniature(tmp_path / "official")
