"""A core on a temporary root, with layers that are directories."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapshotter.core import Snapshotter
from snapshotter.database import Database
from snapshotter.model import Layout
from snapshotter.mounts import MountOptions
from snapshotter.provider import LabelResolver
from tests.unit.snapshotter.layer_directories import DirectoryLayers


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "root")
    found.snapshots.mkdir(parents=True)
    return found


@pytest.fixture
def provider(layout: Layout) -> DirectoryLayers:
    return DirectoryLayers(layout.root / "layers")


@pytest.fixture
async def core(layout: Layout, provider: DirectoryLayers) -> AsyncIterator[Snapshotter]:
    async with Database(layout.database) as database:
        made = Snapshotter(
            layout=layout, database=database, provider=provider, resolver=LabelResolver(), options=MountOptions()
        )
        await made.start()
        yield made
        await made.stop()
