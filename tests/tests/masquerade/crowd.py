"""One side of very many TCP connections, all open at once.

crowd.py serve ADDRESS PORT
    Echoes what comes. When it gets a line it says how many connections it
    holds, then the address and port that each comes from.
crowd.py open ADDRESS PORT FIRST COUNT
    Connects from COUNT ports of its own and says "open" when all are. When it
    gets a line it talks through many of them and says how many.
Both end with their input.
"""
import gc
import os
import resource
import select
import socket
import struct
import sys

# Connections that are being opened, or talked through, at a time: eight
# processes leave queues with room.
WINDOW = 32
# Seconds without any progress.
SILENCE = 60
# Of so many connections, one is talked through.
SAMPLE = 16

gc.disable()
# Raising the hard one takes a capability that not every root has.
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def serve(address, port):
    listener = socket.create_server((address, int(port)), backlog=4096)
    listener.setblocking(False)
    poll, held = select.epoll(), {}
    poll.register(0, select.EPOLLIN)
    poll.register(listener, select.EPOLLIN)
    say("listening")

    def accept():
        try:
            while True:
                stream, seen = listener.accept()
                held[stream.fileno()] = stream, seen
                poll.register(stream, select.EPOLLIN)
        except BlockingIOError:
            pass

    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                accept()
            elif fd == 0:
                if not os.read(0, 64):
                    return
                say(len(held))
                for _, (its, port) in held.values():
                    print(its, port)
                sys.stdout.flush()
            else:
                stream, _ = held[fd]
                try:
                    said = stream.recv(4)
                except ConnectionResetError:
                    said = b""
                if said:
                    stream.send(said)
                else:
                    del held[fd]
                    stream.close()


def for_each(streams, mask, begin, finish):
    """Begins and finishes with every stream, a few at a time."""
    poll, begun, waiting, done = select.epoll(), 0, {}, 0
    while done < len(streams):
        while begun < len(streams) and len(waiting) < WINDOW:
            begin(begun)
            poll.register(streams[begun], mask)
            waiting[streams[begun].fileno()] = begun
            begun += 1
        ready = poll.poll(SILENCE)
        if not ready:
            sys.exit(f"{done} are done, {len(waiting)} wait for {SILENCE} s")
        for fd, _ in ready:
            poll.unregister(fd)
            finish(waiting.pop(fd))
            done += 1


def connect(address, port, first, count):
    first = int(first)
    streams = [socket.socket() for _ in range(int(count))]

    def begin(number):
        stream = streams[number]
        stream.setblocking(False)
        # Others bind to the same ports, and talk to other addresses.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Nobody waits for a hundred thousand goodbyes.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.bind(("0.0.0.0", first + number))
        stream.connect_ex((address, int(port)))

    def opened(number):
        error = streams[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            sys.exit(f"{address} from port {first + number}: {os.strerror(error)}")

    for_each(streams, select.EPOLLOUT, begin, opened)
    say("open")
    sys.stdin.readline()
    sample = streams[::SAMPLE]

    def ask(number):
        sample[number].send(struct.pack("!I", number))

    def answered(number):
        if sample[number].recv(16) != struct.pack("!I", number):
            sys.exit(f"{address} from {sample[number].getsockname()}: other bytes came")

    for_each(sample, select.EPOLLIN, ask, answered)
    say(len(sample))
    sys.stdin.readline()


{"serve": serve, "open": connect}[sys.argv[1]](*sys.argv[2:])
