"""All workloads, by the letter and by the name they have on the command line."""

from tests.bench.converter_speed import ConverterSpeed
from tests.bench.node_cost import NodeCost
from tests.bench.starts import DemoServer, ImportsServer, TorchServer
from tests.bench.weights import WeightsRead
from tests.bench.workload import Measured

ALL: tuple[Measured, ...] = (TorchServer(), WeightsRead(), ImportsServer(), DemoServer(), ConverterSpeed(), NodeCost())
