// kernels_body.h for every instruction set.
#include "kernels.h"

#define OPERATORS memory_layers
#include "every_level.h"
