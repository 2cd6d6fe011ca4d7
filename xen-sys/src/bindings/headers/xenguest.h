/* What src/bindings/xenguest.rs is generated from. */
#include <xenctrl.h>
#include <xenguest.h>
