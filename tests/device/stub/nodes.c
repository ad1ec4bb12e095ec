/* What the graph of a capture holds, as a program may ask before the capture ends; and host functions, which never run. */
#include "stub.h"

enum { NODE_KERNEL = 0, NODE_MEMCPY = 1, NODE_MEMSET = 2, NODE_HOST = 3, NODE_GRAPH = 4 };
enum { HOST_MEMORY = 1, DEVICE_MEMORY = 2 };
struct end { size_t x, y, z, level; u32 memory; const void* host; u64 device; void *array, *reserved; size_t pitch, height; };
struct copy { struct end from, to; size_t width, height, depth; };

API int cuLaunchHostFunc(struct stream* s, void* function, void* data) {
  ENTER(CONTEXT);
  (void)function; (void)data;
  return enqueue(s, (struct op){.kind = RECORD, .value = NODE_HOST});  /* an event leaves no node */
}
API int cuGraphGetNodes(struct graph* g, struct op** nodes, size_t* count) {
  ENTER(INIT);
  size_t n = 0;
  for (struct op* op = g->ops; op && (!nodes || n < *count); op = op->next)
    if (op->kind != RECORD || op->value == NODE_HOST) { if (nodes) nodes[n] = op; ++n; }
  *count = n;
  return OK;
}
API int cuGraphNodeGetType(const struct op* op, int* out) {
  ENTER(INIT);
  switch (op->kind) {
    case KERNEL: *out = NODE_KERNEL; break;
    case FILL: *out = NODE_MEMSET; break;
    case RECORD: *out = NODE_HOST; break;
    case GRAPH: *out = NODE_GRAPH; break;
    default: *out = NODE_MEMCPY;
  }
  return OK;
}
API int cuGraphMemcpyNodeGetParams(const struct op* op, struct copy* out) {
  ENTER(INIT);
  *out = (struct copy){.width = op->size, .height = 1, .depth = 1};
  out->from.memory = op->kind == COPY_IN ? HOST_MEMORY : DEVICE_MEMORY;
  out->to.memory = op->kind == COPY_OUT ? HOST_MEMORY : DEVICE_MEMORY;
  return OK;
}
