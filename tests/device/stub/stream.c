/* Streams, events, captures and graphs. */
#include "stub.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static __thread struct stream* captured;  /* by this thread */
static pthread_mutex_t guard = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

struct stream* capturing_here(void) { return captured; }

int on_stream(struct stream* s) {
  if ((u64)s <= 2) { fault("the default stream is used"); return 0; }  /* null, legacy, per thread */
  if (!s->alive) { fault("a destroyed stream is used"); return 0; }
  if (s->device != current) { fault("a stream of device %d is used with the context of %d", s->device, current); return 0; }
  return 1;
}

static void run_ops(struct op* op);
static void run(struct op* op) {
  switch (op->kind) {
    case COPY_IN: case FILL:
      if (!inside(op->to, op->size)) { fault("written outside of device memory"); break; }
      if (op->kind == FILL) memset((void*)op->to, op->value, op->size);
      else memcpy((void*)op->to, (void*)op->from, op->size);
      break;
    case COPY_OUT:
      if (!inside(op->from, op->size)) { fault("read outside of device memory"); break; }
      memcpy((void*)op->to, (void*)op->from, op->size);
      break;
    case KERNEL: note("runs %s", op->text); break;
    case GRAPH: run_ops(((struct graph*)op->object)->ops); break;
    case FREE_BLOCK: drop_block(op->to); break;
    case RECORD: break;
  }
}
static void run_ops(struct op* op) { for (; op; op = op->next) { if (op->kind <= FILL) note("runs a copy of %zu", op->size); run(op); } }

static void append(struct op** at, struct op op) {
  while (*at) at = &(*at)->next;
  *at = malloc(sizeof op); op.next = NULL; **at = op;
}
static void free_ops(struct op* op) { while (op) { struct op* next = op->next; free(op); op = next; } }
static void let_go(struct graph* g) { if (g && !--g->owners) { free_ops(g->ops); free(g); } }

int enqueue(struct stream* s, struct op op) {
  if (!on_stream(s)) return INVALID_HANDLE;
  pthread_mutex_lock(&guard);
  if (s->capturing) append(&s->graph->ops, op);
  else if (late) { ++s->enqueued; *s->last = malloc(sizeof op); op.next = NULL; **s->last = op; s->last = &(*s->last)->next; }
  else { s->done = ++s->enqueued; run(&op); }
  pthread_mutex_unlock(&guard);
  return OK;
}
int run_until(struct stream* s, u64 position) {
  pthread_mutex_lock(&guard);
  while (s->first && s->done < position) {
    struct op* op = s->first;
    s->first = op->next;
    if (!s->first) s->last = &s->first;
    run(op);
    if (op->kind == GRAPH) let_go(op->object);
    free(op); ++s->done;
  }
  pthread_mutex_unlock(&guard);
  return OK;
}

API int cuStreamCreateWithPriority(struct stream** out, u32 flags, int priority) {
  ENTER(CONTEXT, "flags=%u", flags);
  (void)priority;
  struct stream* s = *out = calloc(1, sizeof *s);
  s->alive = 1; s->device = current; s->last = &s->first;
  return OK;
}
API int cuStreamCreate(struct stream** out, u32 flags) { return cuStreamCreateWithPriority(out, flags, 0); }
API int cuStreamDestroy_v2(struct stream* s) {  /* never freed, so that a use afterwards is noticed */
  ENTER(INIT);
  if (!s->alive) fault("a stream is destroyed twice");
  run_until(s, s->enqueued);
  s->alive = 0;
  return OK;
}
API int cuStreamSynchronize(struct stream* s) {
  ENTER(CONTEXT);
  if (!on_stream(s)) return INVALID_HANDLE;
  if (s->capturing) { s->broken = 1; fault("a capturing stream is waited for"); return CAPTURE_UNSUPPORTED; }
  return run_until(s, s->enqueued);
}
API int cuStreamQuery(struct stream* s) { ENTER(CONTEXT); return on_stream(s) ? s->first ? NOT_READY : OK : INVALID_HANDLE; }
API int cuStreamGetId(struct stream* s, u64* out) { ENTER(INIT); *out = (u64)s; return OK; }
API int cuStreamGetFlags(struct stream* s, u32* out) { ENTER(INIT); (void)s; *out = 1; return OK; }
API int cuStreamGetPriority(struct stream* s, int* out) { ENTER(INIT); (void)s; *out = 0; return OK; }
API int cuStreamGetDevice(struct stream* s, int* out) { ENTER(INIT); *out = s->device; return OK; }

API int cuEventCreate(struct event** out, u32 flags) {
  ENTER(CONTEXT, "flags=%u", flags);
  struct event* e = *out = calloc(1, sizeof *e);
  e->alive = 1; e->device = current; e->flags = flags;
  return OK;
}
API int cuEventRecord(struct event* e, struct stream* s) {
  ENTER(CONTEXT, "event=%p", (void*)e);
  if (!e->alive) { fault("a destroyed event is recorded"); return INVALID_HANDLE; }
  int code = enqueue(s, (struct op){.kind = RECORD, .object = e});
  if (code) return code;
  if (s->capturing) fault("an event is recorded in a capture");
  e->stream = s; e->at = s->enqueued;
  return OK;
}
API int cuEventRecordWithFlags(struct event* e, struct stream* s, u32 flags) { (void)flags; return cuEventRecord(e, s); }
API int cuEventQuery(struct event* e) { ENTER(SYNC); return !e->stream || e->stream->done >= e->at ? OK : NOT_READY; }
API int cuEventSynchronize(struct event* e) {
  ENTER(SYNC, "event=%p", (void*)e);
  if (!e->alive) { fault("a destroyed event is waited for"); return INVALID_HANDLE; }
  return e->stream ? run_until(e->stream, e->at) : OK;
}
API int cuEventDestroy_v2(struct event* e) { ENTER(INIT); e->alive = 0; return OK; }

API int cuStreamBeginCapture_v2(struct stream* s, int mode) {
  ENTER(CONTEXT, "mode=%d", mode);
  if (!on_stream(s) || s->capturing) return INVALID_VALUE;
  s->graph = calloc(1, sizeof *s->graph); s->graph->owners = 2;  /* the capture, and who ends it */
  s->capturing = 1; s->broken = 0; s->thread = thread(); captured = mode == 2 ? NULL : s;
  return OK;
}
API int cuStreamEndCapture(struct stream* s, struct graph** out) {
  ENTER(CONTEXT);
  if (!s->capturing) return INVALID_VALUE;
  if (s->thread != thread()) { fault("a capture is ended by another thread"); return 908; }
  s->capturing = 0; captured = NULL;
  if (out) *out = s->broken ? NULL : s->graph;
  let_go(s->graph);
  return s->broken ? CAPTURE_INVALIDATED : OK;
}
static int capture_status(const struct stream* s) { return !s->capturing ? 0 : s->broken ? 2 : 1; }
API int cuStreamIsCapturing(struct stream* s, int* out) { ENTER(CONTEXT); *out = capture_status(s); return OK; }
API int cuStreamGetCaptureInfo_v3(struct stream* s, int* status, u64* id, struct graph** graph, void** ties, void** edges, size_t* n) {
  ENTER(CONTEXT);
  *status = capture_status(s);
  if (id) *id = 1;
  if (graph) *graph = s->graph;
  if (ties) *ties = NULL;
  if (edges) *edges = NULL;
  if (n) *n = 0;
  return OK;
}
API int cuStreamGetCaptureInfo_v2(struct stream* s, int* status, u64* id, struct graph** graph, void** ties, size_t* n) {
  return cuStreamGetCaptureInfo_v3(s, status, id, graph, ties, NULL, n);
}

/* An executable graph shares the nodes of its graph. */
static int instantiate(struct graph** out, struct graph* g) { ++g->owners; *out = g; return OK; }
API int cuGraphInstantiateWithParams(struct graph** out, struct graph* g, void* params) {
  ENTER(CONTEXT);
  (void)params;
  return instantiate(out, g);
}
API int cuGraphInstantiateWithFlags(struct graph** out, struct graph* g, u64 flags) { ENTER(CONTEXT); (void)flags; return instantiate(out, g); }
API int cuGraphLaunch(struct graph* g, struct stream* s) {
  ENTER(CONTEXT);
  if (late) ++g->owners;
  return enqueue(s, (struct op){.kind = GRAPH, .object = g});
}
API int cuGraphExecDestroy(struct graph* g) { ENTER(INIT); let_go(g); return OK; }
API int cuGraphDestroy(struct graph* g) { ENTER(INIT); let_go(g); return OK; }
API int cuGraphRetainUserObject(void* g, void* o, u32 n, u32 flags) { ENTER(INIT); (void)g; (void)o; (void)n; (void)flags; return OK; }
API int cuGraphReleaseUserObject(void* g, void* o, u32 n) { ENTER(INIT); (void)g; (void)o; (void)n; return OK; }
API int cuUserObjectCreate(void** o, void* p, void* f, u32 n, u32 flags) { ENTER(INIT); (void)p; (void)f; (void)n; (void)flags; *o = malloc(8); return OK; }
API int cuUserObjectRetain(void* o, u32 n) { ENTER(INIT); (void)o; (void)n; return OK; }
API int cuUserObjectRelease(void* o, u32 n) { ENTER(INIT); (void)o; (void)n; return OK; }
