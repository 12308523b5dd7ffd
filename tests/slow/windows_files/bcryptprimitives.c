/* The one function of bcryptprimitives.dll that Rust's standard library calls and wine 8 lacks, by way of RtlGenRandom. */
__declspec(dllimport) void *LoadLibraryA(const char *name);
__declspec(dllimport) void *GetProcAddress(void *library, const char *name);
typedef unsigned char (*fill_function)(void *, unsigned long);
static fill_function fill;

__declspec(dllexport) int ProcessPrng(unsigned char *buffer, unsigned long long size) {
    if (!fill)
        fill = (fill_function)GetProcAddress(LoadLibraryA("advapi32.dll"), "SystemFunction036");
    while (size) {
        unsigned long part = size > 65536 ? 65536 : (unsigned long)size;
        fill(buffer, part);
        buffer += part;
        size -= part;
    }
    return 1;
}
