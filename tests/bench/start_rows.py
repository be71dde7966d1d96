"""The targets of cold starts, and which row is held against which. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastpull.lab.network import LinkShape
from tests.bench import rivals
from tests.bench.table import Figure, Row, Target, figure
from tests.bench.touched import Touched
from tests.bench.trials import Trial

MB, MIB = 1e6, 1 << 20
LOCAL_WARM, LOCAL_COLD = "overlayfs local, warm", "overlayfs local, cold"
OURS = (
    "fastpull",
    "fastpull-predicted",
    "fastpull-profile",
    "fastpull-packed",
    "fastpull-along",
    "fastpull-along-packed",
)
# (mode, base, target) of the time to ready; the bases are measured in the same run.
_READY = (
    ("fastpull", "limit", Target(at_most=2)),
    ("fastpull", "overlayfs", Target(at_most=1 / 8)),
    ("fastpull", "overlayfs-pigz", None),
    ("fastpull-predicted", "limit", Target(at_most=2)),
    ("fastpull-predicted", "overlayfs", Target(at_most=1 / 8)),
    ("fastpull-profile", "limit", Target(at_most=1.25)),
    ("fastpull-profile", LOCAL_COLD, Target(at_most=1)),
    ("fastpull-profile", "overlayfs", Target(at_most=1 / 14)),
    ("fastpull-packed", "limit", Target(at_most=1.25)),
    ("fastpull-packed", LOCAL_COLD, Target(at_most=1)),
    ("fastpull-packed", "overlayfs", Target(at_most=1 / 14)),
    ("fastpull-along", "limit", Target(at_most=1.2)),
    ("fastpull-along-packed", "limit", Target(at_most=1.2)),
    ("eager", "overlayfs", None),
    ("eager", "overlayfs-pigz", None),
    ("fastpull local, cold", LOCAL_COLD, Target(at_most=1)),
    ("fastpull local, warm", LOCAL_WARM, Target(at_most=1)),
)
ALONG_MB, CPU_S, STREAMING_MIB = 200, 4, 400


@dataclass(frozen=True, slots=True)
class StartRows:
    """Rows of one workload. What was not measured gives no row."""

    title: str
    shape: LinkShape
    touched: Touched | None
    trials: Sequence[Trial]

    def rows(self) -> Iterator[Row]:
        limit = self.limit()
        if limit is not None:
            yield Row(workload=self.title, what="limit: local and warm, or touched bytes / link", ours=limit)
        for mode, base, target in _READY:
            yield from self._ready(mode, base, target)
        for mode in ("overlayfs", "eager", *OURS):
            yield from self._plain(mode)
        for mode in OURS:
            yield from self._costs(mode)
        for rival in rivals.ALL:
            yield from self._rival(rival.name)

    def limit(self) -> Figure | None:
        """The longer of: the same start with everything local and warm; the bytes it touches over the link."""
        warm = self._of(LOCAL_WARM, "ready_s")
        if warm is None or self.touched is None:
            return None
        rate = self.shape.rate_bits_s
        link_s = self.touched.exact_bytes * 8 / rate if rate else 0.0
        return figure([max(value, link_s) for value in warm], "s")

    def _of(self, mode: str, metric: str) -> list[float] | None:
        return [trial.metrics()[metric] for trial in self.trials if trial.mode == mode] or None

    def _ready(self, mode: str, base: str, target: Target | None) -> Iterator[Row]:
        ours = self._of(mode, "ready_s")
        against = self._of(base, "ready_s")
        against_figure = self.limit() if base == "limit" else figure(against, "s") if against else None
        if ours and against_figure is not None:
            yield Row(
                workload=self.title,
                what=f"{mode}: time to ready",
                ours=figure(ours, "s"),
                base=against_figure,
                base_name=base,
                target=target,
            )

    def _plain(self, mode: str) -> Iterator[Row]:
        """What has no target of its own, beside overlayfs."""
        for metric, what, unit, scale in (
            ("container_start_s", "time to container start", "s", 1.0),
            ("complete_s", "time until the last byte came", "s", 1.0),
            ("bytes_to_ready", "bytes fetched to ready", "MB", MB),
            ("bytes_total", "bytes fetched in all", "MB", MB),
        ):
            ours, base = self._of(mode, metric), self._of("overlayfs", metric)
            small = mode in ("fastpull-along", "fastpull-along-packed") and metric == "bytes_to_ready"
            if ours:
                yield Row(
                    workload=self.title,
                    what=f"{mode}: {what}",
                    ours=figure(ours, unit, scale=scale),
                    base=figure(base, unit, scale=scale) if base and mode != "overlayfs" else None,
                    target=Target(at_most=ALONG_MB, of_ratio=False) if small else None,
                )

    def _costs(self, mode: str) -> Iterator[Row]:
        for metric, what, unit, scale, target in (
            ("cpu_to_ready_s", "daemon CPU to ready", "s", 1.0, Target(at_most=CPU_S, of_ratio=False)),
            ("daemon_cpu_s", "daemon CPU, whole image", "s", 1.0, None),
            ("faults", "reads that waited", "", 1.0, None),
            ("fault_wait_s", "their waits, summed", "s", 1.0, None),
            ("events", "events", "", 1.0, None),
            (
                "daemon_peak_rss_bytes",
                "daemon RSS at most, streaming",
                "MiB",
                float(MIB),
                Target(at_most=STREAMING_MIB, of_ratio=False),
            ),
        ):
            ours = self._of(mode, metric)
            if ours:
                yield Row(
                    workload=self.title,
                    what=f"{mode}: {what}",
                    ours=figure(ours, unit, scale=scale),
                    target=target,
                )

    def _rival(self, mode: str) -> Iterator[Row]:
        """Another snapshotter's start, beside ours from an image without a profile."""
        for metric, what, unit, scale in (
            ("ready_s", "time to ready", "s", 1.0),
            ("container_start_s", "time to container start", "s", 1.0),
            ("bytes_to_ready", "bytes fetched to ready", "MB", MB),
            ("cpu_to_ready_s", "daemon CPU to ready", "s", 1.0),
        ):
            theirs, ours = self._of(mode, metric), self._of("fastpull", metric)
            if theirs:
                yield Row(
                    workload=self.title,
                    what=f"{mode}: {what}",
                    ours=figure(theirs, unit, scale=scale),
                    base=figure(ours, unit, scale=scale) if ours else None,
                    base_name="fastpull",
                )
