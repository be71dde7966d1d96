"""Bytes and seconds as people read them."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


def in_bytes(count: float) -> str:
    """Three significant digits, decimal units: 1234567 is `1.23 MB`."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    if unit == "B":
        return f"{count:.0f} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def in_rate(bytes_per_s: float) -> str:
    """A transfer rate."""
    return f"{in_bytes(bytes_per_s)}/s"


def in_seconds(seconds: float) -> str:
    """A duration: `240 ms`, `5.1 s`, `12 s`, `3 min`, `2 h 5 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, thing: str) -> str:
    """`1 read`, `2 reads`."""
    return f"{count} {thing}{'s' * (count != 1)}"
