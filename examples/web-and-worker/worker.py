"""Counts, forever: a process type without a port."""

import time

count = 0
while True:
    count += 1
    print(f"worked {count} times", flush=True)
    time.sleep(1)
