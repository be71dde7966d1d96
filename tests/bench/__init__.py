"""Benchmarks: `make bench`. Not tests: nothing here passes or fails, it prints figures beside their targets.

| module | offers |
|---|---|
| `table` | `Row`, `Report`: figures, ratios, targets; the printed table and the JSON document |
| `workloads` | what is measured, one small class each; `ALL` names them |
| `rivals` | other lazy snapshotters: their daemons, their formats; `ALL` names them |
| `__main__` | the command line |

To add a workload, write a class with `name` and `rows(setting)` in `workloads` and put it into `ALL`.
"""
