/* A stub of NVIDIA's driver: device memory is host memory, and every call is counted and logged.

   Entry points are found by their exported names. Each begins with ENTER, which does what is common to all:
   counts, logs, fails where a test asked for it, and refuses what the real driver refuses. */
#ifndef STUB_H
#define STUB_H
#define _GNU_SOURCE
#include <stdint.h>
#include <stddef.h>

#define API __attribute__((visibility("default")))
typedef uint64_t u64;
typedef unsigned u32;

/* CUresult */
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_INVALIDATED = 901, CAPTURE_IMPLICIT = 906 };

/* What a call needs. FREE: nothing; INIT: cuInit; CONTEXT: a current context; SYNC: that, and no capture by this thread,
   as what may wait for other work is "potentially unsafe" in a thread-local capture. */
enum need { FREE, INIT, CONTEXT, SYNC };

struct site { const char* name; u64 count; int listed; struct site* next; };
struct block { u64 address; size_t size; int host; struct block* next; };
struct op { enum { COPY_IN, COPY_OUT, FILL, KERNEL, GRAPH, RECORD, FREE_BLOCK } kind; u64 to, from; size_t size;
            int value; char text[80]; void* object; struct op* next; };
struct graph { struct op* ops; int owners; };
struct stream { int alive, device, capturing, broken; long thread; struct graph* graph; struct op *first, **last;
                u64 enqueued, done; };
struct event { int alive, device; struct stream* stream; u64 at; u32 flags; };

extern int late;                 /* copies and all behind them run when they are waited for */
extern int devices, version, pools;
extern __thread int current;     /* the device whose context is current, or -1 */

int enter(struct site* here, enum need need, const char* format, ...) __attribute__((format(printf, 3, 4)));
void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
void note(const char* format, ...) __attribute__((format(printf, 1, 2)));
long thread(void);
struct stream* capturing_here(void);                   /* the stream that this thread captures, or null */
int on_stream(struct stream* stream);                  /* whether work may be enqueued there; a fault is noted */
int enqueue(struct stream* stream, struct op op);      /* now, later, or into the graph */
int run_until(struct stream* stream, u64 position);
int inside(u64 address, size_t size);                  /* whether it lies in one live block */
void drop_block(u64 address);

#define ENTER(need, ...) do { static struct site here; here.name = __func__; \
    int code_ = enter(&here, need, " " __VA_ARGS__); if (code_) return code_; } while (0)
#endif
