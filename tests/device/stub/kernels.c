/* Libraries of machine code, and launches. Nothing is run: a launch is logged, with the first eight bytes of its first
   parameter, which must be the address of live memory. */
#include "stub.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct library { const char* code; size_t size; int named; };  /* named: its names can be read in the code */
struct kernel { struct library* library; char name[64]; };

API int cuLibraryLoadData(struct library** out, const void* code, void* a, void* b, u32 c, void* d, void* e, u32 f) {
  ENTER(INIT);
  (void)a; (void)b; (void)c; (void)d; (void)e; (void)f;
  const unsigned char* bytes = code;
  struct library* l = calloc(1, sizeof *l);
  if (!memcmp(bytes, "\x7f" "ELF", 4)) {  /* its table of sections ends a cubin */
    l->size = *(u64*)(bytes + 40) + (size_t)*(uint16_t*)(bytes + 58) * *(uint16_t*)(bytes + 60); l->named = 1;
  } else if (*(u32*)bytes == 0xBA55ED50) {
    l->size = *(uint16_t*)(bytes + 6) + *(u64*)(bytes + 8);
  } else { free(l); return INVALID_IMAGE; }
  char* copy = malloc(l->size);
  memcpy(copy, code, l->size); l->code = copy; *out = l;
  return OK;
}
API int cuLibraryGetKernel(struct kernel** out, struct library* l, const char* name) {
  ENTER(INIT, "name=%s", name);
  if (l->named && !memmem(l->code, l->size, name, strlen(name) + 1)) return NOT_FOUND;
  struct kernel* k = calloc(1, sizeof *k);
  k->library = l; snprintf(k->name, sizeof k->name, "%s", name); *out = k;
  return OK;
}
API int cuLibraryUnload(struct library* l) { ENTER(INIT); free((void*)l->code); free(l); return OK; }
API int cuKernelGetLibrary(struct library** out, struct kernel* k) { ENTER(INIT); *out = k->library; return OK; }
API int cuKernelGetFunction(struct kernel** out, struct kernel* k) { ENTER(CONTEXT); *out = k; return OK; }
API int cuKernelGetName(const char** out, struct kernel* k) { ENTER(INIT); *out = k->name; return OK; }
API int cuKernelGetAttribute(int* out, int which, struct kernel* k, int d) { ENTER(INIT); (void)which; (void)k; (void)d; *out = 64; return OK; }
API int cuFuncGetAttribute(int* out, int which, struct kernel* k) { ENTER(INIT); (void)which; (void)k; *out = 64; return OK; }
API int cuFuncGetModule(void** out, struct kernel* k) { ENTER(INIT); *out = k->library; return OK; }

static int launch(struct kernel* k, const u32 grid[3], const u32 block[3], struct stream* s, void** params) {
  u64 first = params && params[0] ? *(u64*)params[0] : 0;
  if (!inside(first, 1)) { fault("%s is given %lx, which is not device memory", k->name, (unsigned long)first); return INVALID_VALUE; }
  struct op op = {.kind = KERNEL};
  snprintf(op.text, sizeof op.text, "%s<%u,%u,%u x %u,%u,%u>", k->name, grid[0], grid[1], grid[2], block[0], block[1], block[2]);
  return enqueue(s, op);
}
API int cuLaunchKernel(struct kernel* k, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, struct stream* s,
                       void** params, void** extra) {
  ENTER(CONTEXT, "name=%s grid=%u,%u,%u block=%u,%u,%u", k->name, gx, gy, gz, bx, by, bz);
  (void)shared; (void)extra;
  return launch(k, (u32[]){gx, gy, gz}, (u32[]){bx, by, bz}, s, params);
}
struct config { u32 grid[3], block[3], shared; struct stream* stream; void* attributes; u32 count; };
API int cuLaunchKernelEx(const struct config* c, struct kernel* k, void** params, void** extra) {
  ENTER(CONTEXT, "name=%s grid=%u,%u,%u block=%u,%u,%u", k->name, c->grid[0], c->grid[1], c->grid[2], c->block[0],
        c->block[1], c->block[2]);
  (void)extra;
  return launch(k, c->grid, c->block, c->stream, params);
}
