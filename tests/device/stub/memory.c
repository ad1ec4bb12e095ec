/* Memory: of the device, which is the host's here, and pinned. A copy outside of a live block is a fault. */
#include "stub.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct block* blocks;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static u64 reserved;  /* bytes that the pool holds beside what is in use */
static char pool[64];

int inside(u64 address, size_t size) {
  int found = 0;
  pthread_mutex_lock(&guard);
  for (struct block* b = blocks; b && !found; b = b->next) found = address >= b->address && address + size <= b->address + b->size;
  pthread_mutex_unlock(&guard);
  return found;
}

static int allocate(u64* out, size_t size, int host) {
  struct block* block = malloc(sizeof *block);
  void* memory = NULL;
  if (!block || posix_memalign(&memory, 512, size ? size : 1)) { free(block); return OUT_OF_MEMORY; }
  memset(memory, 0xCD, size);  /* not zero, as a pool's memory */
  *block = (struct block){(u64)memory, size, host, NULL};
  pthread_mutex_lock(&guard); block->next = blocks; blocks = block; pthread_mutex_unlock(&guard);
  *out = (u64)memory;
  return OK;
}

void drop_block(u64 address) {
  pthread_mutex_lock(&guard);
  for (struct block** at = &blocks; *at; at = &(*at)->next)
    if ((*at)->address == address) {
      struct block* gone = *at;
      *at = gone->next;
      if (!gone->host) reserved += gone->size;
      free((void*)address); free(gone);
      pthread_mutex_unlock(&guard);
      return;
    }
  pthread_mutex_unlock(&guard);
  fault("freed what is not allocated");
}

API u64 stub_reserved(void) { return reserved; }
API u64 stub_allocated(int host) {  /* bytes */
  u64 sum = 0;
  for (struct block* b = blocks; b; b = b->next) if (b->host == host) sum += b->size;
  return sum;
}

API int cuMemAlloc_v2(u64* out, size_t size) { ENTER(SYNC, "size=%zu", size); return allocate(out, size, 0); }
API int cuMemFree_v2(u64 address) { ENTER(SYNC); drop_block(address); return OK; }
API int cuMemAllocFromPoolAsync(u64* out, size_t size, void* p, struct stream* s) {
  ENTER(CONTEXT, "size=%zu", size);
  (void)p;
  if (!on_stream(s)) return INVALID_HANDLE;
  if (s->capturing) fault("memory is allocated in a capture");
  return allocate(out, size, 0);
}
API int cuMemAllocAsync(u64* out, size_t size, struct stream* s) { return cuMemAllocFromPoolAsync(out, size, NULL, s); }
API int cuMemFreeAsync(u64 address, struct stream* s) {
  ENTER(CONTEXT);
  if ((u64)s > 2 && s->capturing) fault("memory is freed in a capture");
  return enqueue(s, (struct op){.kind = FREE_BLOCK, .to = address});
}
API int cuMemHostAlloc(void** out, size_t size, u32 flags) {
  ENTER(SYNC, "size=%zu flags=%u", size, flags);
  return allocate((u64*)out, size, 1);
}
API int cuMemAllocHost_v2(void** out, size_t size) { return cuMemHostAlloc(out, size, 0); }
API int cuMemFreeHost(void* address) { ENTER(SYNC); drop_block((u64)address); return OK; }

API int cuDeviceGetMemPool(void** out, int k) { ENTER(INIT); (void)k; *out = pool; return OK; }
API int cuDeviceGetDefaultMemPool(void** out, int k) { ENTER(INIT); (void)k; *out = pool; return OK; }
API int cuMemGetMemPool(void** out, void* place, int type) { ENTER(INIT); (void)place; (void)type; *out = pool; return OK; }
API int cuMemGetDefaultMemPool(void** out, void* place, int type) { ENTER(INIT); (void)place; (void)type; *out = pool; return OK; }
API int cuMemPoolSetAttribute(void* p, int which, u64* value) {
  ENTER(INIT, "which=%d value=%lx", which, (unsigned long)*value);
  (void)p;
  return OK;
}
API int cuMemPoolGetAttribute(void* p, int which, u64* value) { ENTER(INIT, "which=%d", which); (void)p; *value = 0; return OK; }
API int cuMemPoolTrimTo(void* p, size_t keep) {
  ENTER(SYNC, "keep=%zu", keep);
  if (p != pool) { fault("trimmed what is not the pool"); return INVALID_HANDLE; }
  if (reserved > keep) reserved = keep;
  return OK;
}

API int cuMemsetD8Async(u64 to, unsigned char value, size_t size, struct stream* s) {
  ENTER(CONTEXT, "size=%zu", size);
  return enqueue(s, (struct op){.kind = FILL, .to = to, .size = size, .value = value});
}
API int cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t size, struct stream* s) {
  ENTER(CONTEXT, "size=%zu pinned=%d", size, inside((u64)from, size));
  return enqueue(s, (struct op){.kind = COPY_IN, .to = to, .from = (u64)from, .size = size});
}
API int cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t size, struct stream* s) {
  ENTER(CONTEXT, "size=%zu pinned=%d", size, inside((u64)to, size));
  return enqueue(s, (struct op){.kind = COPY_OUT, .to = (u64)to, .from = from, .size = size});
}
API int cuPointerGetAttribute(void* out, int which, u64 address) { ENTER(INIT); (void)which; (void)address; *(u64*)out = 0; return OK; }
API int cuPointerGetAttributes(u32 n, int* which, void** out, u64 address) { ENTER(INIT); (void)n; (void)which; (void)out; (void)address; return OK; }
