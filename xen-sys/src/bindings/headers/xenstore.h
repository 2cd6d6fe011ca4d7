/* What src/bindings/xenstore.rs is generated from. */
#include <stdbool.h>
#include <xenstore.h>
