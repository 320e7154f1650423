# A hundred threads look names up about which nobody answers. The main thread ticks, and says how large the
# largest gap was and how long it all took.
import socket
import threading
import time

NAMES = 100
failed = []


def look_up(number):
    try:
        socket.getaddrinfo(f"nobody{number}.test", 80)
    except socket.gaierror as error:
        failed.append(error)


began = time.monotonic()
threads = [threading.Thread(target=look_up, args=(number,)) for number in range(NAMES)]
for thread in threads:
    thread.start()
last, gap = time.monotonic(), 0
while any(thread.is_alive() for thread in threads):
    time.sleep(0.001)
    now = time.monotonic()
    last, gap = now, max(gap, now - last)
for thread in threads:
    thread.join()
assert len(failed) == NAMES, failed
print(gap, time.monotonic() - began)
