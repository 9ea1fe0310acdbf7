// The Python module of the CUDA library: importing it registers the operators; it says what it was built for.
#include <Python.h>

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C_cuda() {
  PyObject* m = PyModule_Create(&module);
  if (m == nullptr || PyModule_AddStringConstant(m, "version", MT2O_VERSION) != 0 ||
      PyModule_AddStringConstant(m, "cuda_version", MT2O_CUDA_VERSION) != 0 ||
      PyModule_AddStringConstant(m, "archs", MT2O_CUDA_ARCHS) != 0) {
    Py_XDECREF(m);
    return nullptr;
  }
  return m;
}
