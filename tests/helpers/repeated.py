"""Work in other threads while a test does its own."""

import threading
from contextlib import contextmanager


@contextmanager
def repeated(job, threads=1):
    """Repeats a job in other threads until the end of the block; gives what it returned, or raised, each time."""
    is_over, found = threading.Event(), []

    def repeat():
        # A thread that starts late does the job once.
        while not (is_over.is_set() and found):
            try:
                found.append(job())
            # Whatever the job fails with is what the test is about.
            except BaseException as error:
                found.append(error)

    running = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield found
    finally:
        is_over.set()
        for thread in running:
            thread.join()
