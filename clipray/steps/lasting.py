"""Work that must not end with the thread that asks for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def lasting(start: Callable[[], None]) -> None:
    """Call a function that starts processes, in a thread that lasts as long as this process.

    Ray asks Linux to kill what it starts when its parent dies, and to Linux the parent is the thread: a cluster that a
    thread of a pool had started would be gone with the pool.

    Raises:
        what the function raises.
    """
    if threading.current_thread() is threading.main_thread():
        start()
        return
    done: Future[None] = Future()

    def run() -> None:
        try:
            start()
        except BaseException as error:
            done.set_exception(error)
            return
        done.set_result(None)
        threading.Event().wait()

    threading.Thread(target=run, name="lasting", daemon=True).start()
    done.result()
