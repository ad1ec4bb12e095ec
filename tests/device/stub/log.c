/* The log, the counters, the failures that a test asks for, and what every call has to fulfil. */
#include "stub.h"
#include <stdarg.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>

int late, devices = 1, version = 13000, pools = 1;
__thread int current = -1;
static int logging, initialized, owner;  /* owner: the process that called cuInit */
static char* text; static size_t used, room;
static struct site* sites;
static struct { char name[64]; int left, times, code; } failures[8];
static int asked;
static pthread_mutex_t guard = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

long thread(void) { static __thread long id; return id ? id : (id = syscall(SYS_gettid)); }

static void write_line(const char* head, const char* format, va_list arguments) {
  char line[512];
  int n = snprintf(line, sizeof line, "%s", head);
  n += vsnprintf(line + n, sizeof line - n - 2, format, arguments);
  if (n > (int)sizeof line - 2) n = sizeof line - 2;
  line[n++] = '\n';
  pthread_mutex_lock(&guard);
  if (used + n + 1 > room) text = realloc(text, room = 2 * room + n + 4096);
  memcpy(text + used, line, n); used += n; text[used] = 0;
  pthread_mutex_unlock(&guard);
}

void note(const char* format, ...) {
  if (!logging) return;
  va_list a; va_start(a, format); write_line("", format, a); va_end(a);
}
void fault(const char* format, ...) {  /* logged always */
  va_list a; va_start(a, format); write_line("FAULT ", format, a); va_end(a);
}

/* cuMemcpyHtoDAsync names cuMemcpyHtoDAsync_v2, too. */
static int same(const char* name, const char* full) {
  size_t n = strlen(name);
  return !strncmp(name, full, n) && (!full[n] || !strncmp(full + n, "_v", 2));
}

int enter(struct site* here, enum need need, const char* format, ...) {
  ++here->count;
  if (!here->listed) {
    pthread_mutex_lock(&guard); here->listed = 1; here->next = sites; sites = here; pthread_mutex_unlock(&guard);
  }
  struct stream* captured = need >= CONTEXT ? capturing_here() : NULL;
  if (logging) {
    char head[160]; va_list a; va_start(a, format);
    snprintf(head, sizeof head, "%s thread=%ld context=%d capture=%d ", here->name, thread(), current, captured != NULL);
    write_line(head, format, a); va_end(a);
  }
  for (int k = 0; k < asked; ++k)
    if (failures[k].times > 0 && same(failures[k].name, here->name) && --failures[k].left <= 0) {
      --failures[k].times; return failures[k].code;
    }
  if (need == FREE) return OK;
  if (!initialized || owner != getpid()) return NOT_INITIALIZED;
  if (need == INIT) return OK;
  if (current < 0) { fault("%s has no current context", here->name); return INVALID_CONTEXT; }
  if (need == SYNC && captured) {
    captured->broken = 1; fault("%s in a capture", here->name); return CAPTURE_UNSUPPORTED;
  }
  return OK;
}

API int cuInit(u32 flags) {
  ENTER(FREE);
  (void)flags;
  if (initialized && owner != getpid()) return NOT_INITIALIZED;  /* forked */
  initialized = 1; owner = getpid();
  return devices ? OK : 100;
}

/* For tests. */
API void stub_configure(int driver, int with_pools, int count) { version = driver; pools = with_pools; devices = count; }
API void stub_late(int on) { late = on; }
API void stub_log(int on) { logging = on; }
API const char* stub_text(void) { return text ? text : ""; }
API void stub_clear(void) {
  used = 0; asked = 0;
  if (text) *text = 0;
  for (struct site* s = sites; s; s = s->next) s->count = 0;
}
API void stub_fail(const char* name, int nth, int times, int code) {
  int k = asked < 8 ? asked++ : 7;
  snprintf(failures[k].name, sizeof failures[k].name, "%s", name);
  failures[k].left = nth; failures[k].times = times; failures[k].code = code;
}
API u64 stub_count(const char* name) {  /* of a call, or of all where the name is empty */
  u64 sum = 0;
  for (struct site* s = sites; s; s = s->next) if (!*name || same(name, s->name)) sum += s->count;
  return sum;
}
