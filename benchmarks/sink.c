/* An S3 endpoint as fast as a socket: takes uploads and keeps nothing of them but their lengths, and serves the files
 * of a folder. Plain http or TLS, at full speed or like a line of some bandwidth and latency.
 *
 *   sink [--root FOLDER] [--tls CERTIFICATE KEY] [--bytes-per-s N] [--latency-us N]
 *
 * One thread per connection. Knows: PUT, multipart uploads, HEAD, ranged GET, listings (one page), DELETE,
 * Expect: 100-continue, Content-Length and chunked bodies. Checks no signature and no checksum. Prints its port.
 * Compile with -DWITH_TLS -lssl -lcrypto for TLS. For benchmarks on loopback alone. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
static SSL_CTX *tls;
#else
typedef void SSL;
#endif

enum { BUFFER = 1 << 20, HEADERS = 1 << 16, SLICE = 1 << 17, TABLE = 1 << 16 };
#define ETAG "00000000000000000000000000000000-1" /* not the shape of an MD5: nobody compares it with one */

static const char *root;
static double bytes_per_s;
static long latency_us;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char *path; unsigned long long size; } table[TABLE]; /* lengths of what was uploaded */

struct line { int fd; SSL *ssl; char *buffer; size_t begin, end; };

/* The line's own pace, shared by all connections: free_at is when what was let through has been paid for. */
static void pace(size_t bytes) {
    static double free_at;
    struct timespec now_ts;
    if (!bytes_per_s) return;
    clock_gettime(CLOCK_MONOTONIC, &now_ts);
    double now = now_ts.tv_sec + now_ts.tv_nsec / 1e9;
    pthread_mutex_lock(&lock);
    if (free_at < now - 0.002) free_at = now - 0.002; /* as much as a switch holds */
    double until = free_at += bytes / bytes_per_s;
    pthread_mutex_unlock(&lock);
    if (until - now < 0.0002) return;
    struct timespec ts = { (time_t)until, (long)((until - (time_t)until) * 1e9) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL)) {}
}

static void delay(void) { if (latency_us) usleep(latency_us); }

static ssize_t take(struct line *l, void *to, size_t n) {
    ssize_t got;
#ifdef WITH_TLS
    if (l->ssl) got = SSL_read(l->ssl, to, n);
    else
#endif
    got = recv(l->fd, to, n, 0);
    if (got > 0) pace(got);
    return got;
}

static int give(struct line *l, const char *from, size_t n) {
    while (n) {
        size_t slice = n < SLICE ? n : SLICE;
        ssize_t sent;
#ifdef WITH_TLS
        if (l->ssl) sent = SSL_write(l->ssl, from, slice);
        else
#endif
        sent = send(l->fd, from, slice, MSG_NOSIGNAL);
        if (sent <= 0) return 0;
        pace(sent);
        from += sent; n -= sent;
    }
    return 1;
}

static int fill(struct line *l) {
    if (l->begin == l->end) l->begin = l->end = 0;
    if (l->end == BUFFER) {
        memmove(l->buffer, l->buffer + l->begin, l->end - l->begin);
        l->end -= l->begin; l->begin = 0;
    }
    ssize_t n = take(l, l->buffer + l->end, BUFFER - l->end);
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
        if (!have && !l->ssl) { /* the kernel throws it away without copying it */
            ssize_t n = recv(l->fd, NULL, count < BUFFER ? count : BUFFER, MSG_TRUNC);
            if (n <= 0) return 0;
            pace(n); count -= n;
            continue;
        }
        if (!have) { if (!fill(l)) return 0; continue; }
        size_t n = have < count ? have : count;
        l->begin += n; count -= n;
    }
    return 1;
}

static unsigned long long skip_chunked(struct line *l, int *ok) {
    char text[256];
    unsigned long long total = 0;
    *ok = 0;
    for (;;) {
        if (!read_until(l, "\r\n", text, sizeof text)) return 0;
        unsigned long long n = strtoull(text, NULL, 16);
        if (!n) break;
        if (!skip(l, n + 2)) return 0;
        total += n;
    }
    do { if (!read_until(l, "\r\n", text, sizeof text)) return 0; } while (*text); /* trailers */
    *ok = 1;
    return total;
}

/* The length of what was uploaded to a path: set, added to, or (size NULL) looked up; -1 where there is nothing. */
static long long uploaded(const char *path, const unsigned long long *size, int is_part) {
    unsigned at = 5381;
    long long known = -1;
    for (const char *c = path; *c; c++) at = at * 33 + *c;
    pthread_mutex_lock(&lock);
    for (at %= TABLE; table[at].path && strcmp(table[at].path, path); at = (at + 1) % TABLE) {}
    if (size) {
        if (!table[at].path) table[at].path = strdup(path);
        table[at].size = *size + (is_part ? table[at].size : 0);
    }
    if (table[at].path) known = table[at].size;
    pthread_mutex_unlock(&lock);
    return known;
}

static int answer_more(struct line *l, const char *status, const char *more, const char *body, long long length,
                       int is_head) {
    char text[1024];
    int n = snprintf(text, sizeof text,
        "HTTP/1.1 %s\r\nETag: \"" ETAG "\"\r\nLast-Modified: Sat, 21 Nov 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\n"
        "Content-Type: %s\r\n%sContent-Length: %lld\r\n\r\n",
        status, body ? "application/xml" : "application/octet-stream", more, length);
    size_t with = body && !is_head ? strlen(body) : 0;
    char *whole = malloc(n + with);
    memcpy(whole, text, n);
    if (with) memcpy(whole + n, body, with);
    int ok = give(l, whole, n + with);
    free(whole);
    return ok;
}

static int answer(struct line *l, const char *status, const char *body, int is_head) {
    return answer_more(l, status, "", body, strlen(body), is_head);
}

static int serve_file(struct line *l, const char *key, const char *head, int is_head) {
    char path[4096], more[128] = "";
    struct stat found;
    snprintf(path, sizeof path, "%s/%s", root ? root : "/nowhere", key);
    int fd = *key && root ? open(path, O_RDONLY) : -1;
    if (fd < 0 || fstat(fd, &found) || !S_ISREG(found.st_mode)) {
        if (fd >= 0) close(fd);
        return -1;
    }
    long long first = 0, last = found.st_size - 1;
    const char *range = strcasestr(head, "\r\nrange: bytes="), *status = "200 OK";
    if (range) {
        char *dash;
        range += 15;
        if (*range == '-') first = found.st_size - strtoll(range + 1, NULL, 10);
        else {
            first = strtoll(range, &dash, 10);
            if (dash[1] >= '0' && dash[1] <= '9') last = strtoll(dash + 1, NULL, 10);
        }
        if (last >= found.st_size) last = found.st_size - 1;
        if (first < 0) first = 0;
        if (first > last) {
            close(fd);
            return answer(l, "416 Range Not Satisfiable", "<Error><Code>InvalidRange</Code></Error>", is_head);
        }
        status = "206 Partial Content";
        snprintf(more, sizeof more, "Content-Range: bytes %lld-%lld/%lld\r\n", first, last, (long long)found.st_size);
    }
    int ok = answer_more(l, status, more, NULL, last - first + 1, is_head);
    if (ok && !is_head && l->ssl) {
        char *map = mmap(NULL, found.st_size, PROT_READ, MAP_SHARED, fd, 0);
        ok = map != MAP_FAILED && give(l, map + first, last - first + 1);
        if (map != MAP_FAILED) munmap(map, found.st_size);
    } else if (ok && !is_head) {
        off_t at = first;
        while (at <= last) {
            size_t slice = last - at + 1;
            if (bytes_per_s && slice > SLICE) slice = SLICE;
            ssize_t sent = sendfile(l->fd, fd, &at, slice);
            if (sent <= 0) { ok = 0; break; }
            pace(sent);
        }
    }
    close(fd);
    return ok;
}

static void decode(char *text) {
    char *to = text;
    for (; *text && *text != '&' && *text != ' '; text++)
        if (*text == '%' && text[1] && text[2]) {
            char hex[3] = { text[1], text[2], 0 };
            *to++ = strtol(hex, NULL, 16); text += 2;
        } else *to++ = *text;
    *to = 0;
}

/* All of it in one page: folder by folder, one level of folders below the root. */
static int list(struct line *l, char *query) {
    char *prefix = strstr(query, "prefix="), name[1024], wanted[1024] = "";
    int by_folder = strstr(query, "delimiter=%2F") || strstr(query, "delimiter=/");
    if (prefix && (prefix == query || prefix[-1] == '&')) { snprintf(wanted, sizeof wanted, "%s", prefix + 7); decode(wanted); }
    char *out; size_t size;
    FILE *body = open_memstream(&out, &size);
    fprintf(body, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>bucket</Name><Prefix>%s</Prefix>"
                  "<MaxKeys>100000</MaxKeys><IsTruncated>false</IsTruncated>", wanted);
    int count = 0;
    DIR *top = root ? opendir(root) : NULL;
    for (struct dirent *folder; top && (folder = readdir(top));) {
        if (folder->d_name[0] == '.') continue;
        size_t n = strlen(wanted);
        snprintf(name, sizeof name, "%s/", folder->d_name);
        if (by_folder && !strncmp(name, wanted, n) && n < strlen(name)) {
            fprintf(body, "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>", name); count++;
            continue;
        }
        if (strncmp(name, wanted, n < strlen(name) ? n : strlen(name))) continue;
        snprintf(name, sizeof name, "%s/%s", root, folder->d_name);
        DIR *in = opendir(name);
        for (struct dirent *file; in && (file = readdir(in));) {
            struct stat found;
            snprintf(name, sizeof name, "%s/%s", folder->d_name, file->d_name);
            if (file->d_name[0] == '.' || strncmp(name, wanted, n) || fstatat(dirfd(in), file->d_name, &found, 0)) continue;
            fprintf(body, "<Contents><Key>%s</Key><LastModified>2026-11-21T00:00:00.000Z</LastModified>"
                          "<ETag>&quot;" ETAG "&quot;</ETag><Size>%lld</Size><StorageClass>STANDARD</StorageClass></Contents>",
                    name, (long long)found.st_size); count++;
        }
        if (in) closedir(in);
    }
    if (top) closedir(top);
    fprintf(body, "<KeyCount>%d</KeyCount></ListBucketResult>", count);
    fclose(body);
    int ok = answer(l, "200 OK", out, 0);
    free(out);
    return ok;
}

static int respond(struct line *l, char *head, unsigned long long body_bytes) {
    char *end = strstr(head, "\r\n"), *method = head, none[] = "";
    int is_head = !strncmp(head, "HEAD", 4), is_get = !strncmp(head, "GET", 3);
    char *path = strchr(head, ' ');
    if (!path || !end) return 0;
    char saved = *end;
    *end = 0;
    char *space = strchr(++path, ' '), *query = strchr(path, '?');
    if (space) *space = 0;
    if (query) *query++ = 0;
    else query = none;
    char *key = *path ? strchr(path + 1, '/') : NULL;
    key = key ? key + 1 : none;
    char *fields = end + 1;
    *end = saved;
    fields[-1] = '\r';
    if (is_get && strstr(query, "location")) return answer(l, "200 OK", "<LocationConstraint/>", 0);
    if (is_get && !*key) return list(l, query);
    if (is_head && !*key) return answer(l, "200 OK", "", 1);
    if (is_get || is_head) {
        int ok = serve_file(l, key, fields - 1, is_head);
        if (ok >= 0) return ok;
        long long size = uploaded(path, NULL, 0);
        if (is_head && size >= 0) return answer_more(l, "200 OK", "", NULL, size, 1);
        return answer(l, "404 Not Found", "<Error><Code>NoSuchKey</Code><Message>it keeps nothing</Message></Error>", is_head);
    }
    if (!strncmp(method, "DELETE", 6)) return answer_more(l, "204 No Content", "", NULL, 0, 1);
    if (!strncmp(method, "PUT", 3)) {
        uploaded(path, &body_bytes, strstr(query, "partNumber=") != NULL);
        return answer(l, "200 OK", "", 0);
    }
    if (strstr(query, "uploadId="))
        return answer(l, "200 OK", "<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key>"
                         "<ETag>\"" ETAG "\"</ETag></CompleteMultipartUploadResult>", 0);
    unsigned long long nothing = 0;
    uploaded(path, &nothing, 0);
    return answer(l, "200 OK", "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key>"
                     "<UploadId>u</UploadId></InitiateMultipartUploadResult>", 0);
}

static void *serve(void *argument) {
    struct line l = { (int)(long)argument, NULL, malloc(BUFFER), 0, 0 };
    char *head = malloc(HEADERS);
    int one = 1;
    setsockopt(l.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    delay(); /* the handshake of TCP */
#ifdef WITH_TLS
    if (tls) {
        l.ssl = SSL_new(tls);
        SSL_set_fd(l.ssl, l.fd);
        if (SSL_accept(l.ssl) <= 0) goto done;
    }
#endif
    while (read_until(&l, "\r\n\r\n", head, HEADERS - 4)) {
        strcat(head, "\r\n");
        char *length = strcasestr(head, "\r\ncontent-length:"), *decoded = strcasestr(head, "\r\nx-amz-decoded-content-length:");
        int is_chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL, ok = 1;
        if (strcasestr(head, "\r\nexpect: 100-continue") && !give(&l, "HTTP/1.1 100 Continue\r\n\r\n", 25)) break;
        unsigned long long body_bytes = length ? strtoull(length + 17, NULL, 10) : 0;
        if (is_chunked) body_bytes = skip_chunked(&l, &ok);
        else ok = skip(&l, body_bytes);
        if (decoded) body_bytes = strtoull(decoded + 31, NULL, 10);
        if (!ok) break;
        delay();
        if (!respond(&l, head, body_bytes)) break;
    }
#ifdef WITH_TLS
done:
    if (l.ssl) SSL_free(l.ssl);
#endif
    close(l.fd); free(head); free(l.buffer);
    return NULL;
}

int main(int count, char **words) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    for (int i = 1; i < count; i++) {
        if (!strcmp(words[i], "--root") && i + 1 < count) root = words[++i];
        else if (!strcmp(words[i], "--bytes-per-s") && i + 1 < count) bytes_per_s = atof(words[++i]);
        else if (!strcmp(words[i], "--latency-us") && i + 1 < count) latency_us = atol(words[++i]);
#ifdef WITH_TLS
        else if (!strcmp(words[i], "--tls") && i + 2 < count) {
            tls = SSL_CTX_new(TLS_server_method());
            if (SSL_CTX_use_certificate_chain_file(tls, words[i + 1]) <= 0 ||
                SSL_CTX_use_PrivateKey_file(tls, words[i + 2], SSL_FILETYPE_PEM) <= 0)
                return fprintf(stderr, "sink: cannot use the certificate\n"), 1;
            i += 2;
        }
#endif
        else return fprintf(stderr, "sink: what is %s?\n", words[i]), 2;
    }
    signal(SIGPIPE, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 512)) return perror("sink"), 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && !pthread_create(&thread, NULL, serve, (void *)(long)fd)) pthread_detach(thread);
    }
}
