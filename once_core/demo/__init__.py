"""``once demo``: real workers, a burst of duplicates and a SIGKILL, judged by a ledger.

The only part of `once_core` that knows Celery and Dramatiq: it shows the whole, so it needs the
whole. It is never imported but by the command.

```
story       what happens, in order     binding    what differs from one task queue to the other
scenario    its numbers                app_*      the slow task, with and without once
crew        the processes              worker_*   entries of the workers' processes
ledger      what really happened       producer   entry of the processes that trigger
judge       what was promised          notes      what all of these write down
board       what happens now           lifeline   their certain end
view        live, or plain lines
```
"""

from __future__ import annotations

__all__: list[str] = []
