/* What src/bindings/xenforeignmemory.rs is generated from. */
#include <xenctrl.h>
#include <xenforeignmemory.h>
