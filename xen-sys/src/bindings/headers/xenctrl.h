/* What src/bindings/xenctrl.rs is generated from. */
#include <xenctrl.h>
#include <xen/hvm/params.h>

/*
 * Exported by libxenctrl but declared only in its private header
 * (tools/libs/ctrl/xc_private.h); the signature is the same from 4.17 to 4.23.
 */
int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom,
                          unsigned int num, xen_pfn_t *arr);
