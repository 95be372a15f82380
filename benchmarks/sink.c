/* An S3 endpoint that takes uploads as fast as a socket gives them and keeps nothing.
 *
 * One thread per connection. Knows: PUT, multipart uploads, HEAD (404), listings (empty), Expect: 100-continue,
 * Content-Length and chunked bodies. Checks no signature. Prints its port. For benchmarks on loopback alone. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, HEADERS = 1 << 16 };

struct line { int fd; char *buffer; size_t begin, end; };

static int fill(struct line *l) {
    if (l->begin == l->end) l->begin = l->end = 0;
    if (l->end == BUFFER) {
        memmove(l->buffer, l->buffer + l->begin, l->end - l->begin);
        l->end -= l->begin; l->begin = 0;
    }
    ssize_t n = recv(l->fd, l->buffer + l->end, BUFFER - l->end, 0);
    if (n <= 0) return 0;
    l->end += n;
    return 1;
}

/* Reads up to and including a terminator; returns a NUL-terminated copy without it. */
static int read_until(struct line *l, const char *terminator, char *out, size_t room) {
    size_t length = strlen(terminator);
    for (;;) {
        char *found = memmem(l->buffer + l->begin, l->end - l->begin, terminator, length);
        if (found) {
            size_t n = found - (l->buffer + l->begin);
            if (n >= room) return 0;
            memcpy(out, l->buffer + l->begin, n); out[n] = 0;
            l->begin += n + length;
            return 1;
        }
        if (l->end - l->begin >= room || !fill(l)) return 0;
    }
}

static int skip(struct line *l, unsigned long long count) {
    while (count) {
        size_t have = l->end - l->begin;
        if (!have) { if (!fill(l)) return 0; continue; }
        size_t n = have < count ? have : count;
        l->begin += n; count -= n;
    }
    return 1;
}

static int skip_chunked(struct line *l) {
    char text[256];
    for (;;) {
        if (!read_until(l, "\r\n", text, sizeof text)) return 0;
        unsigned long long n = strtoull(text, NULL, 16);
        if (!n) break;
        if (!skip(l, n + 2)) return 0;
    }
    do { if (!read_until(l, "\r\n", text, sizeof text)) return 0; } while (*text); /* trailers */
    return 1;
}

static int answer(int fd, const char *status, const char *body, int is_head) {
    char text[2048];
    int n = snprintf(text, sizeof text,
        "HTTP/1.1 %s\r\nETag: \"00000000000000000000000000000000\"\r\nContent-Type: application/xml\r\n"
        "Content-Length: %zu\r\n\r\n%s", status, strlen(body), is_head ? "" : body);
    return send(fd, text, n, MSG_NOSIGNAL) == n;
}

static void *serve(void *argument) {
    struct line l = { (int)(long)argument, malloc(BUFFER), 0, 0 };
    char *head = malloc(HEADERS);
    int one = 1;
    setsockopt(l.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (read_until(&l, "\r\n\r\n", head, HEADERS)) {
        char *length = strcasestr(head, "\r\ncontent-length:");
        int is_chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
        if (strcasestr(head, "\r\nexpect: 100-continue") &&
            send(l.fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_NOSIGNAL) != 25) break;
        if (is_chunked ? !skip_chunked(&l) : length && !skip(&l, strtoull(length + 17, NULL, 10))) break;
        char *target_end = strstr(head, "\r\n");
        if (target_end) *target_end = 0;
        const char *status = "200 OK", *body = "";
        if (!strncmp(head, "HEAD", 4)) status = "404 Not Found";
        else if (!strncmp(head, "GET", 3) && !strstr(head, "list-type=")) {
            status = "404 Not Found";
            body = "<Error><Code>NoSuchKey</Code><Message>it keeps nothing</Message></Error>";
        } else if (!strncmp(head, "GET", 3))
            body = "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>";
        else if (!strncmp(head, "POST", 4) && strstr(head, "uploadId="))
            body = "<CompleteMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
                   "<ETag>\"00000000000000000000000000000000-1\"</ETag></CompleteMultipartUploadResult>";
        else if (!strncmp(head, "POST", 4))
            body = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
                   "<UploadId>u</UploadId></InitiateMultipartUploadResult>";
        if (!answer(l.fd, status, body, !strncmp(head, "HEAD", 4))) break;
    }
    close(l.fd); free(head); free(l.buffer);
    return NULL;
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    signal(SIGPIPE, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 128)) return perror("sink"), 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && !pthread_create(&thread, NULL, serve, (void *)(long)fd)) pthread_detach(thread);
    }
}
