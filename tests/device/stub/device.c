/* What the driver says of itself and of its devices; contexts; and how entry points are found. */
#include "stub.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static int contexts[64];  /* a context is the address of its device's place */
static int device_of(const void* context) { return context ? (int)((const int*)context - contexts) : -1; }

API int cuDriverGetVersion(int* out) { ENTER(FREE); *out = version; return OK; }
API int cuDeviceGetCount(int* out) { ENTER(INIT); *out = devices; return OK; }
API int cuDeviceGet(int* out, int k) { ENTER(INIT); *out = k; return k < 0 || k >= devices ? INVALID_DEVICE : OK; }
API int cuDeviceGetName(char* out, int room, int k) { ENTER(INIT); snprintf(out, room, "Stub GPU %d", k); return OK; }
API int cuDeviceTotalMem_v2(size_t* out, int k) { ENTER(INIT); (void)k; *out = (size_t)8 << 30; return OK; }
API int cuDeviceGetUuid_v2(char* out, int k) { ENTER(INIT); memset(out, 7 + k, 16); return OK; }
API int cuDeviceGetAttribute(int* out, int which, int k) {
  ENTER(INIT, "which=%d", which);
  (void)k;
  switch (which) {
    case 16: *out = 132; break;                 /* multiprocessors */
    case 39: *out = 2048; break;                /* threads each */
    case 75: *out = 9; break;                   /* compute capability */
    case 18: case 76: *out = 0; break;          /* integrated; minor */
    case 115: *out = pools; break;              /* memory pools */
    default: *out = 1;
  }
  return OK;
}

API int cuDevicePrimaryCtxRetain(void** out, int k) { ENTER(INIT); *out = contexts + k; return OK; }
API int cuDevicePrimaryCtxRelease_v2(int k) { ENTER(INIT); (void)k; return OK; }
API int cuCtxGetCurrent(void** out) { ENTER(INIT); *out = current < 0 ? NULL : contexts + current; return OK; }
API int cuCtxSetCurrent(void* c) { ENTER(INIT, "device=%d", device_of(c)); current = device_of(c); return OK; }
API int cuCtxGetDevice(int* out) { ENTER(CONTEXT); *out = current; return OK; }
API int cuCtxGetDevice_v2(int* out, void* c) { ENTER(INIT); *out = c ? device_of(c) : current; return OK; }
API int cuCtxSynchronize(void) { ENTER(SYNC); return OK; }
API int cuCtxGetStreamPriorityRange(int* least, int* most) { ENTER(CONTEXT); *least = 0; *most = -5; return OK; }
API int cuStreamGetCtx(struct stream* s, void** c) { ENTER(INIT); *c = contexts + (s ? s->device : current); return OK; }
API int cuStreamGetCtx_v2(struct stream* s, void** c, void** green) {
  ENTER(INIT);
  *c = contexts + (s ? s->device : current);
  if (green) *green = NULL;
  return OK;
}

API int cuGetErrorName(int code, const char** out) {
  static __thread char name[32];
  snprintf(name, sizeof name, "ERROR_%d", code); *out = name;
  return OK;
}
API int cuGetErrorString(int code, const char** out) {
  static __thread char name[64];
  snprintf(name, sizeof name, "what the stub says of %d", code); *out = name;
  return OK;
}

/* The newest form that a caller built for CUDA `wanted` may be given; other calls have one form here. */
static void form_of(char* out, size_t room, const char* name, int wanted) {
  const char* form = "";
  if (!strcmp(name, "cuStreamGetCaptureInfo")) form = wanted >= 12030 ? "_v3" : "_v2";
  if (!strcmp(name, "cuCtxGetDevice") && wanted >= 13000) form = "_v2";
  if (!strcmp(name, "cuStreamGetCtx") && wanted >= 13000) form = "_v2";
  snprintf(out, room, "%s%s", name, form);
}
API int cuGetProcAddress_v2(const char* name, void** out, int wanted, u64 flags, int* status) {
  static void* self;
  char form[128];
  (void)flags;
  if (!self) self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *out = NULL;
  if (wanted > version) { if (status) *status = 2; return NOT_FOUND; }
  form_of(form, sizeof form, name, wanted);
  if (!(*out = dlsym(self, form))) { snprintf(form, sizeof form, "%s_v2", name); *out = dlsym(self, form); }
  if (status) *status = *out ? 0 : 1;
  return *out ? OK : NOT_FOUND;
}
API int cuGetProcAddress(const char* name, void** out, int wanted, u64 flags) {
  return cuGetProcAddress_v2(name, out, wanted, flags, NULL);
}
/* NVRTC asks for a private table, and does without. */
API int cuGetExportTable(const void** out, const void* id) { ENTER(FREE); (void)id; *out = NULL; return NOT_FOUND; }
