"""What is fetched next, and the fetching.

From deciding to doing: ``queues`` (one layer's work, pure), ``governor`` (whose turn it is), ``parallelism`` and
``disk_pressure`` (how much at a time), ``transfers`` (a run: range requests), ``decode`` (frames verified and written),
``reuse`` (what need not come, since another layer has it). ``docs/design/0004-fetch-order.md`` has the rules.
"""

__all__: list[str] = []
