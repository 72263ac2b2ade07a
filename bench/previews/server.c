/* The service that every contender stands in front of: one thread, epoll, HTTP/1.1 with keep-alive.
 *   GET /small          1 KiB
 *   GET /large          100 MiB
 *   Upgrade: anything   echo
 * It reads nothing but the request line and "Upgrade:"; it is for bench/previews alone. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SMALL = 1024, LARGE = 100 << 20, BLOCK = 1 << 18, MOST = 65536 };
struct peer { char in[8192]; size_t have; size_t left; int echo; };
static struct peer *peers[MOST];
static char block[BLOCK], small[SMALL + 256];
static size_t small_size;
static int poller;

static void end(int fd)
{
    free(peers[fd]);
    peers[fd] = 0;
    close(fd);
}

static void watch(int fd, unsigned events)
{
    struct epoll_event event = { .events = events, .data.fd = fd };
    epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event);
}

static void pour(int fd, struct peer *peer)
{
    while (peer->left) {
        ssize_t sent = send(fd, block, peer->left < BLOCK ? peer->left : BLOCK, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) { end(fd); return; }
            watch(fd, EPOLLOUT);
            return;
        }
        peer->left -= (size_t)sent;
    }
    watch(fd, EPOLLIN);
}

static void take(int fd, struct peer *peer)
{
    ssize_t size = recv(fd, peer->in + peer->have, sizeof peer->in - 1 - peer->have, 0);
    if (size <= 0) {
        if (size == 0 || errno != EAGAIN) end(fd);
        return;
    }
    if (peer->echo) { if (send(fd, peer->in, (size_t)size, MSG_NOSIGNAL) != size) end(fd); return; }
    peer->have += (size_t)size;
    peer->in[peer->have] = 0;
    char *stop = strstr(peer->in, "\r\n\r\n");
    if (!stop) { if (peer->have == sizeof peer->in - 1) end(fd); return; }
    if (!strncmp(peer->in, "GET /large", 10)) {
        char head[128];
        int count = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", LARGE);
        send(fd, head, (size_t)count, MSG_NOSIGNAL | MSG_MORE);
        peer->left = LARGE;
    } else if (strcasestr(peer->in, "\r\nupgrade:")) {
        const char *head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n";
        send(fd, head, strlen(head), MSG_NOSIGNAL);
        peer->echo = 1;
    } else {
        send(fd, small, small_size, MSG_NOSIGNAL);
    }
    peer->have = 0;
    if (peer->left) pour(fd, peer);
}

int main(int count, char **words)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[count - 1])) };
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) { perror("listen"); return 1; }
    memset(block, 'x', sizeof block);
    small_size = (size_t)sprintf(small, "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
                                        "Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n", SMALL);
    memset(small + small_size, 'y', SMALL);
    small_size += SMALL;
    poller = epoll_create1(0);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = listener }, ready[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    puts("listening");
    fflush(stdout);
    for (;;) {
        int found = epoll_wait(poller, ready, 256, -1);
        for (int i = 0; i < found; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= MOST) { close(fd); continue; }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    peers[fd] = calloc(1, sizeof(struct peer));
                    event.data.fd = fd;
                    event.events = EPOLLIN;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (peers[fd]) {
                if (ready[i].events & EPOLLOUT) pour(fd, peers[fd]);
                else take(fd, peers[fd]);
            }
        }
    }
}
