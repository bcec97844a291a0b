"""``once demo``: real workers, a burst of duplicates and a SIGKILL, judged by a ledger.

The only part of `once_core` that knows Celery: it shows the whole, so it needs the whole. It is
never imported but by the command.

```
story       what happens, in order     app        the Celery app with the slow task
scenario    its numbers                worker     entry of the workers' processes
crew        the processes              producer   entry of the processes that trigger
ledger      what really happened       lifeline   their certain end
judge       what was promised          board      what happens now, for the eye
                                       view       live in a terminal, or plain lines
```
"""

from __future__ import annotations

__all__: list[str] = []
