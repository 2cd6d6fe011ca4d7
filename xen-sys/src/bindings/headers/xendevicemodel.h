/* What src/bindings/xendevicemodel.rs is generated from. */
#include <xenctrl.h>
#include <xendevicemodel.h>
