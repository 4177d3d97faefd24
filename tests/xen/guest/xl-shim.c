/* Laid under xl with LD_PRELOAD: the tests choose a domain's number, and a domain that xl destroys
 * leaves its nodes to the store, as one does whose toolstack is gone.
 *
 * XL_DOMID=N       what xl creates is domain N
 * XL_KEEP_NODES=1  xl removes no nodes
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

int xc_domain_create(void *xch, uint32_t *domid, void *config)
{
    int (*next)(void *, uint32_t *, void *) = dlsym(RTLD_NEXT, "xc_domain_create");
    const char *wanted = getenv("XL_DOMID");

    if (wanted)
        *domid = atoi(wanted);
    return next(xch, domid, config);
}

bool xs_rm(void *xs, uint32_t transaction, const char *path)
{
    bool (*next)(void *, uint32_t, const char *) = dlsym(RTLD_NEXT, "xs_rm");

    return getenv("XL_KEEP_NODES") || next(xs, transaction, path);
}
