"""The commands: `fastpull` and `fastpull-snapshotter`."""

import os

# Read by gRPC's core when it is imported, so it has to be here. Its fork handlers shut a child's core down between
# fork and exec whenever no thread happens to be inside gRPC, and the child may not live to see its exec. Our children
# only exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
