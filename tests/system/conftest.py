"""The command as a person runs it, beside everything it needs."""

import pytest

from tests.harness import Daemon, PrivateContainerd, Registry, Workspace
from tests.system.test_command_lab import CommandLine


@pytest.fixture
def fastpull(workspace: Workspace, registry: Registry, daemon: Daemon, containerd: PrivateContainerd) -> CommandLine:
    return CommandLine(workspace, containerd, daemon, registry)
