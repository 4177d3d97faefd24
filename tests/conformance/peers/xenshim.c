/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * xenshim: an LD_PRELOAD stand-in for the Xen control libraries.
 *
 * It lets the Debian-packaged xenstore daemons (C xenstored and oxenstored,
 * 4.17) start on a machine with no hypervisor and serve their Unix socket.
 * It can also play guests: see XENSHIM_GUESTS.
 *
 *   XENSHIM_SOCKET=path   bind()/unlink() of any .../xenstored/socket goes
 *                         to path instead (oxenstored has no option for it)
 *   XENSHIM_GUESTS=dir    domain N exists while dir/N.page does (4096 bytes:
 *                         the ring page, mapped shared); 0 always does. It
 *                         is shut down while dir/N.shutdown does.
 *                         Event channels are
 *                         datagrams of one native uint32: a guest N signals
 *                         the daemon by sending N to dir/evtchn, the daemon
 *                         signals guest N by sending N to dir/N.evt.  Sending
 *                         0xffffffff to dir/evtchn raises VIRQ_DOM_EXC.
 *                         Unset: every domid below 0x7ff0 exists, with a
 *                         private ring page which nobody fills.
 *
 * /proc/xen/xsd_port and /proc/xen/xsd_kva (dom0's event channel and ring)
 * are stood in for as well, so the daemons' own dom0 set-up runs.
 *
 * Build: cc -O2 -fPIC -shared -o xenshim.so xenshim.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <xenctrl.h>

static char dummy_xc, dummy_gnt;

static const char *guests(void) { return getenv("XENSHIM_GUESTS"); }

static int page_path(char *b, size_t n, uint32_t dom)
{
    return guests() && snprintf(b, n, "%s/%u.page", guests(), dom) < (int)n;
}

static int dom_exists(uint32_t dom)
{
    char p[200];
    if (!guests() || !dom) return dom < 0x7ff0;
    return page_path(p, sizeof p, dom) && !access(p, F_OK);
}

/* The domain exists but has shut down: "dir/N.shutdown" is there. */
static int dom_shutdown(uint32_t dom)
{
    char p[200];
    if (!guests() || !dom || snprintf(p, sizeof p, "%s/%u.shutdown", guests(), dom) >= (int)sizeof p)
        return 0;
    return !access(p, F_OK);
}

static void *dom_map(uint32_t dom)
{
    char p[200];
    int fd;
    void *m;
    if (!dom_exists(dom)) { errno = ESRCH; return NULL; }
    if (!guests())
        m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    else {
        if (!page_path(p, sizeof p, dom) || (fd = syscall(SYS_openat, AT_FDCWD, p, O_RDWR | O_CLOEXEC)) < 0)
            return NULL;
        m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
    }
    return m == MAP_FAILED ? NULL : m;
}

/* ---- libxenctrl ---- */
xc_interface *xc_interface_open(xentoollog_logger *l, xentoollog_logger *d, unsigned f)
{ (void)l; (void)d; (void)f; return (xc_interface *)&dummy_xc; }
int xc_interface_close(xc_interface *x) { (void)x; return 0; }

int xc_domain_getinfo(xc_interface *x, uint32_t first, unsigned max, xc_dominfo_t *info)
{
    (void)x;
    if (!max || !dom_exists(first)) { errno = ESRCH; return 0; }
    memset(info, 0, sizeof *info);
    info->domid = first;
    info->running = !dom_shutdown(first);
    info->shutdown = dom_shutdown(first);
    return 1;
}

int xc_domain_getinfolist(xc_interface *x, uint32_t first, unsigned max, xc_domaininfo_t *info)
{
    (void)x;
    if (!max || !dom_exists(first)) return 0;
    memset(info, 0, sizeof *info);
    info->domain = first;
    info->flags = dom_shutdown(first) ? XEN_DOMINF_shutdown : XEN_DOMINF_running;
    return 1;
}

void *xc_map_foreign_range(xc_interface *x, uint32_t dom, int size, int prot, unsigned long mfn)
{ (void)x; (void)size; (void)prot; (void)mfn; return dom_map(dom); }

/* ---- libxenevtchn ---- */
struct xenevtchn_handle { int fd; unsigned next; uint32_t dom[4096]; };
#define EV struct xenevtchn_handle
#define VIRQ_DOM 0xffffffffu

EV *xenevtchn_open(struct xentoollog_logger *l, unsigned f)
{
    EV *e = calloc(1, sizeof *e);
    (void)l; (void)f;
    if (!e) return NULL;
    e->next = 1;
    if (guests()) {
        struct sockaddr_un a = { .sun_family = AF_UNIX };
        snprintf(a.sun_path, sizeof a.sun_path, "%s/evtchn", guests());
        unlink(a.sun_path);
        e->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (e->fd >= 0 && syscall(SYS_bind, e->fd, &a, sizeof a)) { close(e->fd); e->fd = -1; }
    } else
        e->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (e->fd < 0) { free(e); return NULL; }
    return e;
}
EV *xenevtchn_fdopen(struct xentoollog_logger *l, int fd, unsigned f)
{ EV *e = calloc(1, sizeof *e); (void)l; (void)f; if (e) { e->fd = fd; e->next = 1; } return e; }
int xenevtchn_close(EV *e) { if (e) { close(e->fd); free(e); } return 0; }
int xenevtchn_fd(EV *e) { return e->fd; }
static int ev_alloc(EV *e, uint32_t dom)
{
    for (unsigned p = 1; p < e->next; p++)
        if (!e->dom[p]) { e->dom[p] = dom; return p; }
    if (e->next >= 4096) { errno = ENOSPC; return -1; }
    e->dom[e->next] = dom;
    return e->next++;
}
int xenevtchn_bind_virq(EV *e, unsigned v) { (void)v; return ev_alloc(e, VIRQ_DOM); }
int xenevtchn_bind_interdomain(EV *e, uint32_t d, evtchn_port_t p)
{ (void)p; if (!dom_exists(d)) { errno = ESRCH; return -1; } return ev_alloc(e, d); }
int xenevtchn_unbind(EV *e, evtchn_port_t p) { if (p < 4096) e->dom[p] = 0; return 0; }
int xenevtchn_notify(EV *e, evtchn_port_t p)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    if (!guests() || p >= 4096 || !e->dom[p] || e->dom[p] == VIRQ_DOM) return 0;
    snprintf(a.sun_path, sizeof a.sun_path, "%s/%u.evt", guests(), e->dom[p]);
    sendto(e->fd, &e->dom[p], 4, MSG_DONTWAIT | MSG_NOSIGNAL, (void *)&a, sizeof a);
    return 0;
}
int xenevtchn_pending(EV *e)
{
    uint32_t dom;
    while (guests() && recv(e->fd, &dom, 4, MSG_DONTWAIT) == 4)
        for (unsigned p = 1; p < e->next; p++)
            if (e->dom[p] == dom) return p;
    if (guests()) return 4095;    /* a late signal to a port unbound since: nobody's */
    errno = EAGAIN;
    return -1;
}
int xenevtchn_unmask(EV *e, evtchn_port_t p) { (void)e; (void)p; return 0; }

/* ---- libxengnttab ---- */
void *xengnttab_open(void *l, unsigned f) { (void)l; (void)f; return &dummy_gnt; }
int xengnttab_close(void *g) { (void)g; return 0; }
int xengnttab_set_max_grants(void *g, uint32_t n) { (void)g; (void)n; return 0; }
void *xengnttab_map_grant_ref(void *g, uint32_t d, uint32_t r, int p)
{ (void)g; (void)r; (void)p; return dom_map(d); }
int xengnttab_unmap(void *g, void *a, uint32_t n) { (void)g; return munmap(a, n * 4096ul); }

/* ---- libc: a sandbox may forbid raising RLIMIT_NOFILE; not fatal ---- */
int setrlimit(__rlimit_resource_t r, const struct rlimit *l)
{ return syscall(SYS_prlimit64, 0, (int)r, l, NULL) && errno != EPERM ? -1 : 0; }
int setrlimit64(__rlimit_resource_t r, const struct rlimit64 *l)
{ return setrlimit(r, (const struct rlimit *)l); }

/* ---- libc: dom0's port and ring page, elsewhere the kernel's to give ---- */
static int stand_in(const char *p)
{
    int fd;
    if (strncmp(p, "/proc/xen/xsd_", 14)) return -1;
    fd = memfd_create("xsd", 0);
    if (!strcmp(p + 14, "kva")) {
        if (ftruncate(fd, 4096)) return -1;
    } else if (write(fd, "1", 1) != 1 || lseek(fd, 0, SEEK_SET)) return -1;
    return fd;
}
int open(const char *p, int fl, ...)
{
    int mode = 0, fd = stand_in(p);
    if (fl & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, fl); mode = va_arg(a, int); va_end(a); }
    return fd >= 0 ? fd : (int)syscall(SYS_openat, AT_FDCWD, p, fl, mode);
}
int open64(const char *p, int fl, ...)
{
    int mode = 0, fd = stand_in(p);
    if (fl & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, fl); mode = va_arg(a, int); va_end(a); }
    return fd >= 0 ? fd : (int)syscall(SYS_openat, AT_FDCWD, p, fl, mode);
}

/* ---- libc: put the socket where we are told ---- */
static const char *moved(const char *p)
{
    const char *want = getenv("XENSHIM_SOCKET"), *t = "/xenstored/socket";
    size_t n = p ? strlen(p) : 0, k = strlen(t);
    return want && n >= k && !strcmp(p + n - k, t) ? want : NULL;
}
int bind(int fd, const struct sockaddr *sa, socklen_t len)
{
    if (sa->sa_family == AF_UNIX && len > sizeof(sa_family_t)) {
        const char *to = moved(((const struct sockaddr_un *)sa)->sun_path);
        if (to) {
            struct sockaddr_un a = { .sun_family = AF_UNIX };
            snprintf(a.sun_path, sizeof a.sun_path, "%s", to);
            return syscall(SYS_bind, fd, &a, sizeof a);
        }
    }
    return syscall(SYS_bind, fd, sa, len);
}
int unlink(const char *p)
{ const char *to = moved(p); return syscall(SYS_unlink, to ? to : p); }

/* ---- libc: /run/xenstored and its like are root's to make; nothing is put there ---- */
int mkdir(const char *p, mode_t mode)
{
    if (getenv("XENSHIM_SOCKET") && (!strncmp(p, "/var/run/xen", 12) || !strncmp(p, "/run/xen", 8)))
        return 0;
    return syscall(SYS_mkdir, p, mode);
}
