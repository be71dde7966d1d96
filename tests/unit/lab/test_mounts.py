"""Reading /proc/self/mountinfo."""

from fastpull.lab.mounts import Mount, parse_mountinfo

# proc(5): optional fields (here "shared:1 master:2", and none) come before the lone dash.
SAMPLE = r"""36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue
40 36 0:50 / /var/tmp/a\040b\134c rw - overlay overlay rw,lowerdir=/x
"""


def test_fields_are_found_whatever_the_optional_ones() -> None:
    assert parse_mountinfo(SAMPLE) == [
        Mount("/mnt2", "ext3", "/dev/root"),
        Mount("/var/tmp/a b\\c", "overlay", "overlay"),
    ]
